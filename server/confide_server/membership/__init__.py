"""Enrolment requests that wait for the root's answer.

- `enrolment`: where they wait; `intake`: how a newer roster comes in
"""
