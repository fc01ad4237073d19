// dplr_scan on the CPU: the matrix state with a diagonal plus rank-one transition.
#include "matrix_state_backward.h"

SCANWEAVE_MATRIX_STATE(dplr_scan, scanweave::Form::dplr)
