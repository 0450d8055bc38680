"""The attention of all stages as the paper tells it, for the tests of faster ways."""

import torch

from benchmarks.gpu_attention import Inputs, Reads


def literal_attention(inputs: Inputs) -> Reads:
    """Place by place, from the relevant classes alone."""
    reads = []
    stages = zip(inputs.queries, inputs.weights, inputs.sizes, strict=True)
    for query, weight, (height, width) in stages:
        read = []
        for image, relevant in enumerate(inputs.relevant):
            for place, q in enumerate(query[image]):
                row = place // width * relevant.shape[0] // height
                column = place % width * relevant.shape[1] // width
                chosen = relevant[row, column].nonzero().flatten()
                scores = inputs.keys[image, chosen] @ q * q.numel() ** -0.5
                read.append(weight @ (scores.softmax(0) @ inputs.values[image, chosen]))
        reads.append(torch.stack(read).view_as(query))
    return reads
