"""The pure core: functions of arrays that JAX traces, and functions of plain values."""
