"""Recovery, between selection and training: refit student and auxiliary to the teacher, without labels."""
