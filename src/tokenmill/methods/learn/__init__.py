"""What each token teaches: how much its loss counts in a training step."""

from tokenmill.methods.learn.full_loss import full_loss as full_loss
from tokenmill.methods.learn.random_share import random_share as random_share
from tokenmill.methods.learn.rho1 import rho1 as rho1
