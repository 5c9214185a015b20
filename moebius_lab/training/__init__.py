"""How the demo checkpoint was made: `python -m moebius_lab.training --work-dir build/training`.

    data       free photographs from Debian packages -> 320 px tiles, and the record of where each came from
    masks      holes of every shape that a person draws
    vae        the small autoencoder
    decoder    its decoder's second training, for texture
    fast_forms the denoiser's slow layers, rewritten for training speed, weights unchanged
    denoiser   the pool of encoded pictures, and the diffusion training itself
    evaluate   held-out photographs: numbers, and the contact sheet that a person judges
    card       the model card's numbers, written from what evaluate and the training left
"""
