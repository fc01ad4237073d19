"""Recurrences as pure functions on tensors: the floor that everything else stands on."""

from .causal_conv1d import causal_conv1d
from .cell_scan import Cell, cell_scan, register_cell
from .conv_scan import conv_scan
from .delta_rule import delta_rule
from .dispatch import BACKENDS, BackendError, served_by, use_backend
from .dplr_scan import dplr_scan
from .gated_linear_attention import gated_linear_attention
from .linear_scan import linear_scan
from .mlstm_scan import MLSTMState, mlstm_scan
from .newton_scan import ConvergenceError, newton_scan
from .plstm_scan import GridState, line_graph, plstm_scan_1d, plstm_scan_2d, plstm_scan_dag
from .prefix_attention import PrefixState, prefix_attention
from .selective_scan import selective_scan
from .ttt_linear import TTTState, ttt_linear
from .wkv4 import WKV4State, wkv4

__all__ = [
    "BACKENDS",
    "BackendError",
    "Cell",
    "ConvergenceError",
    "GridState",
    "MLSTMState",
    "PrefixState",
    "TTTState",
    "WKV4State",
    "causal_conv1d",
    "cell_scan",
    "conv_scan",
    "delta_rule",
    "dplr_scan",
    "gated_linear_attention",
    "line_graph",
    "linear_scan",
    "mlstm_scan",
    "newton_scan",
    "plstm_scan_1d",
    "plstm_scan_2d",
    "plstm_scan_dag",
    "prefix_attention",
    "register_cell",
    "selective_scan",
    "served_by",
    "ttt_linear",
    "use_backend",
    "wkv4",
]
