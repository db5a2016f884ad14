# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's guest: a kernel and an initramfs made of Debian packages.

The packages (cloud kernel, redis, busybox) are downloaded and unpacked into
the cache, never installed. The initramfs holds busybox, redis-server with its
shared libraries, the modules of a virtio port, and two files of ours: init
and the agent (init, agent.c beside this file).

build() is the entrance. Nothing here runs the guest.
"""

import lzma
import os
import re
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
CACHE = os.path.join(os.environ.get('XDG_CACHE_HOME')
                     or os.path.expanduser('~/.cache'), 'qemu-rwp', 'demo')
PRIVATE_APT = os.path.join(TOP, 'scripts', 'private-apt')

# What a virtio port needs; what a kernel has built in is left out.
MODULES = ['virtio_pci', 'virtio_console']


class Failure(Exception):
    """An error whose text tells the user what happened or what to do."""


def run(command, **options):
    """Run a program; its output is returned, or is the text of the error."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=False,
                              **options)
    except FileNotFoundError:
        raise Failure(f'{command[0]} is missing on this machine') from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise Failure(f'{" ".join(command[:4])} failed:\n  '
                      + '\n  '.join(last))
    return done.stdout


# -- packages ---------------------------------------------------------------

def apt(*arguments, **options):
    """apt-get with package lists of our own, which need no root."""
    return run([PRIVATE_APT, '--system', '--', *arguments], **options)


def apt_options():
    return run([PRIVATE_APT, '--system', '--print-options']).splitlines()


def depends(package, options):
    """The packages that a package depends on."""
    output = run(['apt-cache', *options, 'depends', '--no-recommends',
                  '--no-suggests', '--no-conflicts', '--no-breaks',
                  '--no-replaces', '--no-enhances', package])
    return re.findall(r'^ *\|?(?:Pre)?Depends: ([^<\s]+)$', output, re.M)


def with_libraries(package, options):
    """A package and all libraries that it needs, however indirectly."""
    found, todo = {package}, [package]
    while todo:
        for name in depends(todo.pop(), options):
            if name.startswith(('lib', 'lua-')) and name not in found:
                found.add(name)
                todo.append(name)
    return found


def fetch_packages(say):
    """Download and unpack what the guest is made of, unless cached.

    Returns the directory that holds it; it appears complete or not at all.
    """
    root = os.path.join(CACHE, 'root')
    if os.path.isdir(root):
        return root
    if not shutil.which('apt-get') or not shutil.which('dpkg-deb'):
        raise Failure('the guest is made of Debian packages: '
                      'run the demo on Debian')
    say('fetching the guest: cloud kernel, redis, busybox')
    os.makedirs(CACHE, exist_ok=True)
    options = apt_options()
    apt('update')
    kernel = depends('linux-image-cloud-amd64', options)[0]
    packages = {kernel, 'busybox-static', 'redis-server'}
    packages |= with_libraries('redis-tools', options)

    new = root + '.new'
    debs = os.path.join(CACHE, 'debs')
    for directory in new, debs:
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
    apt('download', *sorted(packages), cwd=debs)
    for deb in os.listdir(debs):
        run(['dpkg-deb', '-x', os.path.join(debs, deb), new])
    shutil.rmtree(debs)
    os.rename(new, root)
    return root


# -- the initramfs ----------------------------------------------------------

def library_path(root):
    return ':'.join(os.path.join(root, part) for part in
                    ('lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu'))


def find_loader(root):
    for part in 'lib64', 'lib/x86_64-linux-gnu', 'usr/lib64', \
            'usr/lib/x86_64-linux-gnu':
        path = os.path.join(root, part, 'ld-linux-x86-64.so.2')
        # A package may have it as an absolute link.
        if os.path.exists(path) and \
                os.path.realpath(path).startswith(os.path.realpath(root)):
            return path
    raise Failure(f'no dynamic loader in {root}: remove that directory, '
                  'and the demo fetches it again')


def copy(source, image, name):
    """Copy a program or library into the image; name is relative to it.

    A path outside the image is an error of ours that would overwrite files
    of the host: it is refused, and so is a file that exists.
    """
    to = os.path.join(image, name)
    inside = os.path.realpath(image) + os.sep
    if not os.path.realpath(to).startswith(inside) or os.path.lexists(to):
        raise Failure(f'bug: {name} is not a new file of the image')
    os.makedirs(os.path.dirname(to), exist_ok=True)
    shutil.copyfile(source, to)
    os.chmod(to, 0o755)


def add_redis(root, image):
    """redis-server and its libraries, by the loader that it will have."""
    loader = find_loader(root)
    program = os.path.join(root, 'usr/bin/redis-server')
    listing = run([loader, '--library-path', library_path(root), '--list',
                   program])
    copy(program, image, 'bin/redis-server')
    copy(loader, image, 'lib64/ld-linux-x86-64.so.2')
    # The loader itself is listed too, by its absolute name.
    for name, path in re.findall(r'^\s*([^/\s]+) => (/\S+)', listing, re.M):
        if not path.startswith(root + '/'):
            raise Failure(f'redis needs {name}, which is not among the '
                          f'fetched packages')
        copy(path, image, f'lib/x86_64-linux-gnu/{name}')


def find_modules(tree):
    """The path of each module under a directory, by name."""
    files = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            module = re.fullmatch(r'(.+)\.ko(\.xz)?', name)
            if module:
                files[module[1].replace('-', '_')] = \
                    os.path.join(directory, name)
    return files


def module_content(path):
    opener = lzma.open if path.endswith('.xz') else open
    with opener(path, 'rb') as file:
        return file.read()


def add_modules(root, image, release):
    """The modules, unpacked, and the order to load them in."""
    files = {}
    for part in 'lib/modules', 'usr/lib/modules':
        files |= find_modules(os.path.join(root, part, release))
    order = []

    def add(name):
        if name in order or name not in files:
            return
        content = module_content(files[name])
        # From the section .modinfo: what must be loaded before.
        needs = re.search(rb'\0depends=([^\0]*)\0', content)
        for need in needs[1].decode().split(',') if needs else []:
            add(need)
        order.append(name)
        with open(os.path.join(image, 'modules', name), 'wb') as module:
            module.write(content)

    os.mkdir(os.path.join(image, 'modules'))
    for name in MODULES:
        add(name)
    with open(os.path.join(image, 'modules/order'), 'w',
              encoding='utf-8') as file:
        file.writelines(name + '\n' for name in order)


def add_agent(image):
    run([os.environ.get('CC', 'gcc'), '-O2', '-Wall', '-static', '-o',
         os.path.join(image, 'bin/agent'), os.path.join(HERE, 'agent.c')])


def pack(busybox, image, to):
    """Write a directory as a cpio archive, the format of an initramfs."""
    names = ['.']
    for directory, subdirectories, files in os.walk(image):
        for name in subdirectories + files:
            names.append(os.path.relpath(os.path.join(directory, name), image))
    with open(to, 'wb') as archive:
        subprocess.run([busybox, 'cpio', '-o', '-H', 'newc'], cwd=image,
                       input='\n'.join(sorted(names)).encode() + b'\n',
                       stdout=archive, stderr=subprocess.DEVNULL, check=True)


def build(directory, say):
    """Make kernel and initramfs; returns both paths and the kernel's release.

    The directory is ours and replaced.
    """
    root = fetch_packages(say)
    release = sorted(name[len('vmlinuz-'):]
                     for name in os.listdir(os.path.join(root, 'boot'))
                     if name.startswith('vmlinuz-'))[-1]
    say(f'building the initramfs for Linux {release}')
    shutil.rmtree(directory, ignore_errors=True)
    image = os.path.join(directory, 'image')
    for name in 'bin', 'dev', 'proc', 'sys', 'run', 'tmp':
        os.makedirs(os.path.join(image, name))
    busybox = next(path for path in (os.path.join(root, 'bin/busybox'),
                                     os.path.join(root, 'usr/bin/busybox'))
                   if os.path.exists(path))
    copy(busybox, image, 'bin/busybox')
    os.symlink('busybox', os.path.join(image, 'bin/sh'))
    copy(os.path.join(HERE, 'init'), image, 'init')
    add_redis(root, image)
    add_modules(root, image, release)
    add_agent(image)
    initramfs = os.path.join(directory, 'initramfs')
    pack(busybox, image, initramfs)
    return os.path.join(root, 'boot', 'vmlinuz-' + release), initramfs, release
