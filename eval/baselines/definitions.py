"""What each baseline is, in one line: the sentence that help, documents and results show. Imports nothing, so help is quick."""

DEFINITIONS = {
    "most-frequent": "The k most frequent drugs of the training records, for everyone; k is tuned.",
    "last-visit": "The drugs of the same patient's previous visit, where training or --known records hold it; else those that "
    "现病史 and 既往史 name as taken before admission; else the k most frequent drugs of the training records, k tuned.",
    "neighbours": "A vote of the k training records with the most similar diagnoses (Jaccard index of the sets, weighted by "
    "inverse document frequency); k and a cut on the vote are tuned.",
    "tfidf": "One logistic regression a drug (of at least 3 training records) over TF-IDF of characters and diagnoses; C and "
    "a cut on the probability are tuned.",
    "trees": "Gradient-boosted trees for each drug of at least 30 training records, over diagnoses, age, sex, the drugs that "
    "the record names and a reduced TF-IDF; the number of trees and a cut on the probability are tuned.",
}
"""Name of a baseline -> what it does. All are tuned by board score on a fifth of the training patients."""
