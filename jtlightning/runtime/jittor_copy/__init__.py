"""Use Jittor 1.3.11.0 in a changed copy: as it is, it crashes at times and knows no CUDA 13.

`edits` lists what is changed and why, `patch` makes the copy once per cache, after it has made sure
that the installed Jittor is exactly the one that the edits are for, and `handover` has this process
and those that it starts import it. Another Jittor is left as it is.
"""
