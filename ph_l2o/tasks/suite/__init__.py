"""Tasks for tests of generalisation: other architectures, data and losses than those of the training tasks."""

from ph_l2o.tasks.suite.burgers import Burgers
from ph_l2o.tasks.suite.contrastive import Contrastive
from ph_l2o.tasks.suite.deep_linear import DeepLinear
from ph_l2o.tasks.suite.factorisation import MatrixFactorisation
from ph_l2o.tasks.suite.graph import GraphCommunities
from ph_l2o.tasks.suite.image_fit import ImageFit
from ph_l2o.tasks.suite.networks import Mixer, ResidualMLP, ResNet, ViT
from ph_l2o.tasks.suite.physics import Poisson
from ph_l2o.tasks.suite.tabular import Tabular
from ph_l2o.tasks.suite.text import CharacterText
from ph_l2o.tasks.suite.vae import VAE

__all__ = [
    "VAE",
    "Burgers",
    "CharacterText",
    "Contrastive",
    "DeepLinear",
    "GraphCommunities",
    "ImageFit",
    "MatrixFactorisation",
    "Mixer",
    "Poisson",
    "ResNet",
    "ResidualMLP",
    "Tabular",
    "ViT",
]
