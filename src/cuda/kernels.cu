#include "cuda/kernel_table-inl.h"
