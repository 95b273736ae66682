"""Object detection data: reading COCO and VOC annotations, data sets and data modules."""
