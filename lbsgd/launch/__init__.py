"""Groups of processes: started on one machine or by a cluster manager, joined to one run."""
