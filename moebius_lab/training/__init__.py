"""How the demo checkpoint was made: `python -m moebius_lab.training --work-dir build/training`.

data       free photographs and textures from Debian packages -> an album, and the record of where each came from
generated  pictures drawn while training: lines, patterns, leaves, grain
album      random windows of both, cut and coloured on the device
parallel   one process a GPU
checkpoints written whole, or not at all
course     when a training ends, how fast it learns, what it tells, and from where it resumes
vae        the small autoencoder
decoder    its decoder's second training, for texture
fast_forms the denoiser's slow layers, rewritten for training speed, weights unchanged
kernels    what they run on a card
denoiser   the pool of encoded pictures, and the diffusion training itself
distillation  few evaluations of a finished network, as a low-rank difference from its weights
speed      how long a step takes, and where
evaluate   held-out photographs: numbers, and the contact sheet that a person judges
card       the model card's numbers, written from what evaluate and the training left
"""
