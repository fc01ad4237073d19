"""mlstm_scan: the matrix LSTM's recurrence, with exponential gates and a stabiliser."""
