"""Control of subscriptions while they run: pause, resume, drain, slow down; for all replicas of an app at once."""
