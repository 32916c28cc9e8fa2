"""Why this token came out: how much each prompt token did for it."""

from tokenmill.methods.explain.gradient_norm import gradient_norm as gradient_norm
from tokenmill.methods.explain.occlusion import occlusion as occlusion
from tokenmill.methods.explain.random_attribution import random_attribution as random_attribution
from tokenmill.methods.explain.reagent import reagent as reagent
