"""From a large pretrained teacher to the two small networks S and S′."""
