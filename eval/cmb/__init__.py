"""CMB-Exam: the questions and their scores, other systems' answers, and answers by constrained decoding."""
