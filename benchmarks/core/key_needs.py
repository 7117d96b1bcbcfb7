"""Rules of the top level's keys, with the reason: what `needs` is in a variant's file."""

from __future__ import annotations

NEEDS = {
    "compile": {
        "compile not in ['reduce-overhead', 'cudagraphs'] or device == 'cuda'": (
            "CUDA graphs replay a GPU's kernels; on a CPU, reduce-overhead would be default"
        ),
        "compile == 'none' or warmup_steps > 0": "without warm-up the window would hold the compilation",
        "compile in ['none', 'default'] or device == 'cpu' or warmup_steps >= 3": (
            "a CUDA graph is recorded in the second step after compilation, and replayed from the third"
        ),
    },
    "fuse_for_evaluation": {
        "not fuse_for_evaluation or evaluate": "without an evaluation there is nothing to fuse for",
        "not fuse_for_evaluation or workload.conv_bn in [None, True]": (
            "this workload has no convolution that a batch norm follows"
        ),
    },
    "pin_cores": {
        "not pin_cores or cluster.cores_per_node is None or workers // nodes * threads_per_worker"
        " <= cluster.cores_per_node": "each worker is bound to as many cores of its own as it has threads",
    },
}
