#include "cuda/kernels.cc"  // NOLINT: the same source, for the card
