"""Expressions over events: subscription filters (CloudEvents Subscriptions API, CESQL 1.0) and routing rules (CEL).

Both languages stand on `syntax` (tokens, tree, positions), compile a tree to closures once, and report what each
sub-expression gave as `Step`s.
"""
