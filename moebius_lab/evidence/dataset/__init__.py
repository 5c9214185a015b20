"""Evaluation at the size of a data set: pictures x holes x contenders, on one machine or on a Dask cluster, and what it says.

plan       which pictures, holes and contenders, and the names under which results are kept
work       what a worker does: one contender on one batch of holes
scripted   the networks behind FID and LPIPS, where the reader has their files
cluster    workers, lost and found; parts written whole; a run that was stopped goes on
sheet      the worst fills as one picture
summary    parts to rows; means, intervals, paired differences, FID; the answer in words
"""
