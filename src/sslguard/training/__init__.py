"""The one training loop: devices, gradient accumulation, progress, checkpoints, exact resumption. It knows no loss.

A `Task` says what is trained. Each step runs the task's `Update`s in order. An update computes the gradient of one loss
for chosen parameters, over all micro-batches of all processes, and then steps its optimisers.

The batch of a step is cut into processes × accumulation chunks. All randomness in step s is a function of (seed, s,
chunk). Within an update, every chunk starts from the same running statistics (the buffers of batch norm), and the mean
over chunks is what the update leaves behind, as with gradients. So a resumed run repeats an unbroken one, and two
processes compute the same as one process that accumulates twice as many chunks. Gradients are averaged here rather than
by DistributedDataParallel, which wants every parameter to take part in every backward pass. A scheme with three losses
over four networks does not offer that.
"""
