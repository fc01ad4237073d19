// delta_rule on the CPU: the matrix state that each key corrects.
#include "matrix_state_backward.h"

SCANWEAVE_MATRIX_STATE(delta_rule, scanweave::Form::delta)
