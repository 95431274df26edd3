"""From a large pretrained teacher to student and auxiliary."""
