"""Between selection and training: S and S′ get back what being cut out of the teacher broke, without labels."""
