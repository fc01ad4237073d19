// gated_linear_attention on the CPU: the matrix state with a decay alone, and with a bonus.
#include "matrix_state_backward.h"

SCANWEAVE_MATRIX_STATE(gated_linear_attention, scanweave::Form::plain)
