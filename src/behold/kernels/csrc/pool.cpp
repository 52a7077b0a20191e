#include "pool.h"

Fork bh_fork = nullptr;

BH_EXPORT void bh_init(Fork fork) { bh_fork = fork; }
