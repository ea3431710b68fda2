"""Model2Vec: a table of word vectors from MiniLM, with scikit-learn's logistic regression on top."""

from model2vec.distill import distill
from sklearn.linear_model import LogisticRegression

from benchmarks.peers.given import read

given = read()
with given.clock():
    table = distill(given.settings["source"], pca_dims=given.settings["width"], device="cpu")
    head = LogisticRegression(C=10, max_iter=1000, random_state=given.seed)
    head.fit(table.encode(given.arrays["train_inputs"]), given.arrays["train_labels"].numpy())
given.finish(lambda texts: head.predict(table.encode(texts)))
