"""Bytes of the clamp board to exact energy. Pure: nothing here opens, waits or asks the time."""
