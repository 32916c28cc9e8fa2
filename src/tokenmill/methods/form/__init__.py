"""What becomes a token."""

from tokenmill.methods.form.knn_transplant import knn_transplant as knn_transplant
from tokenmill.methods.form.mean_transplant import mean_transplant as mean_transplant
from tokenmill.methods.form.omp_transplant import omp_transplant as omp_transplant
