"""RT-DETR for object detection, with the official parameter names."""
