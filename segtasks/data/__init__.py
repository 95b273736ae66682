"""Data sets, transforms and data modules: NumPy and OpenCV only, so that workers stay light."""
