"""When the next request may be sent, what a run may spend, and whether a failed request is tried again.

The rules are pure: times and random numbers are arguments. Only `marks`, `draws`, `lease_sharing` and `redis_sharing`
use the store, Redis or a clock.
"""
