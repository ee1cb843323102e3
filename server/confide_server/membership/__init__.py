"""Enrolment requests that wait for the root's answer.

- `enrolment`: where they wait; `waiting`: who waits, said in time; `intake`: how a newer roster comes in
"""
