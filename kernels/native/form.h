// Both operators for one instruction set; its macros end here.

#include "lanes.h"

#include "../correlation/native.h"
#include "../selective_scan/native.h"

#undef vec
#undef ivec
#undef SUFFIX
#undef LANES
#undef LARGER
#undef SCAN_VECTORS
#undef SUPPORTS
#undef QUERY_VECTORS
