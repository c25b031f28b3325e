"""ds_io and ds_nvme_tune: how fast tensors go from and to files, and which settings are best."""
