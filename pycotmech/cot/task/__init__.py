"""The fictional-ontology task: words, sentences, examples, steps and their counterfactuals."""
