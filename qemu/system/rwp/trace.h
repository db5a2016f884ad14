#include "trace/trace-system_rwp.h"
