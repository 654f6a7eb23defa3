"""Reading traces: every format, what a trace holds, and choosing part of one."""
