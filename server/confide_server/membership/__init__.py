"""Enrolment requests that wait for the root's answer."""
