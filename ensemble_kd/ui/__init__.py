"""`ensemble-kd ui`: pages over run folders. They read, and write nothing."""
