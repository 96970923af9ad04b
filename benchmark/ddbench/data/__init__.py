"""Real data: subsets with an identity, the training side that runs see, and the sealed test split that they do not."""
