"""A counter on a device, for launches that are recorded once and replayed: see ``interop.launch_repeatedly``."""

import warp as wp


@wp.kernel(enable_backward=False)
def count_steps_kernel(
    steps: wp.int32,
    # input and output
    call: wp.array[wp.int64],
):
    """Add to the number of steps done in ``call``."""
    call[6] += wp.int64(steps)
