"""Timeouts, retries and circuit breakers around calls, as Dapr's resiliency manifests describe them.

`manifest` reads the YAML, `targets` finds the policy of a call, `policy` runs it; `retry`, `breaker` and `trip` are
the parts it is made of. docs/resiliency.md is the user's page.
"""
