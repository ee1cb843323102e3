"""Who may do what: one table, by the name of the route. A route that is not in it answers nobody.

>>> RULES["runs"].allows(Role.AUDITOR), RULES["people_invite"].allows(Role.AUDITOR)
(True, False)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """As the admin API names them."""

    ADMINISTRATOR = "administrator"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ANNOTATOR = "annotator"
    ORGANIZATION = "organization"


@dataclass(frozen=True)
class Rule:
    """Of one route."""

    roles: frozenset[Role] = frozenset()
    public: bool = False
    """Answered before sign-in."""
    scope: str = ""
    """An API token with this scope may read it."""
    confirmed: bool = False
    """The second factor is asked for again."""

    def allows(self, role: Role) -> bool:
        """Whether somebody of this role may."""
        return role in self.roles


_EVERYBODY = frozenset(Role)
_CONSORTIUM = frozenset({Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR})
_READERS = _CONSORTIUM | {Role.ORGANIZATION}
_DRIVERS = frozenset({Role.ADMINISTRATOR, Role.OPERATOR})
_ANNOTATORS = frozenset({Role.ADMINISTRATOR, Role.ANNOTATOR})
_ADMINISTRATORS = frozenset({Role.ADMINISTRATOR})

RULES: Mapping[str, Rule] = {
    # before sign-in
    "asset": Rule(public=True),
    "health": Rule(public=True),
    "sign_in_page": Rule(public=True),
    "sign_in": Rule(public=True),
    "code_page": Rule(public=True),
    "code": Rule(public=True),
    "welcome_page": Rule(public=True),
    "welcome": Rule(public=True),
    "provider_begin": Rule(public=True),
    "provider_answer": Rule(public=True),
    "key_options": Rule(public=True),
    "key": Rule(public=True),
    # one's own account
    "sign_out": Rule(_EVERYBODY),
    "sign_out_everywhere": Rule(_EVERYBODY),
    "account": Rule(_EVERYBODY),
    "account_password": Rule(_EVERYBODY),
    "confirm_by_key": Rule(_EVERYBODY),
    "key_registration": Rule(_EVERYBODY),
    "provider_bind": Rule(_EVERYBODY, confirmed=True),
    "key_add": Rule(_EVERYBODY, confirmed=True),
    "key_remove": Rule(_EVERYBODY, confirmed=True),
    "token_make": Rule(_READERS, confirmed=True),
    "token_revoke": Rule(_READERS),
    # other people's
    "people": Rule(_ADMINISTRATORS),
    "people_invite": Rule(_ADMINISTRATORS, confirmed=True),
    "people_close": Rule(_ADMINISTRATORS, confirmed=True),
    # answers to compare
    "feedback": Rule(_ANNOTATORS),
    "feedback_judge": Rule(_ANNOTATORS),
    "feedback_undo": Rule(_ANNOTATORS),
    # their disagreements: who judged one of these answers is refused by the page
    "adjudication": Rule(_ANNOTATORS),
    "adjudication_decide": Rule(_ANNOTATORS),
    "adjudication_undo": Rule(_ANNOTATORS),
    # documents: the library decides again, by the organization of the account
    "knowledge": Rule(_READERS),
    "knowledge_collection": Rule(_READERS),
    "knowledge_search": Rule(_READERS),
    # the federation: the coordinator decides again, by the role that the console tells it
    "overview": Rule(_READERS),
    "live": Rule(_READERS),
    "runs": Rule(_READERS),
    "run": Rule(_READERS),
    "run_live": Rule(_READERS),
    "run_series": Rule(_READERS),
    "run_csv": Rule(_READERS, scope="runs"),
    "run_toml": Rule(_CONSORTIUM, scope="runs"),
    "compare": Rule(_READERS),
    "run_pause": Rule(_DRIVERS, confirmed=True),
    "run_resume": Rule(_DRIVERS, confirmed=True),
    "run_priority": Rule(_DRIVERS, confirmed=True),
    "specification": Rule(_DRIVERS),
    "specification_check": Rule(_DRIVERS),
    "members": Rule(_READERS),
    "enrolment_file": Rule(_DRIVERS),
    "roster_file": Rule(_CONSORTIUM),
    "privacy": Rule(_READERS),
    "privacy_series": Rule(_READERS),
    "models": Rule(_READERS),
    "release_create": Rule(_ADMINISTRATORS, confirmed=True),
    "release_publish": Rule(_ADMINISTRATORS, confirmed=True),
    "release_rollback": Rule(_ADMINISTRATORS, confirmed=True),
    "audit": Rule(frozenset({Role.ADMINISTRATOR, Role.AUDITOR})),
    "audit_export": Rule(frozenset({Role.ADMINISTRATOR, Role.AUDITOR}), scope="audit"),
    "api_runs": Rule(_READERS, scope="runs"),
    "api_run": Rule(_READERS, scope="runs"),
    "api_members": Rule(_READERS, scope="members"),
    "api_privacy": Rule(_READERS, scope="privacy"),
    "api_models": Rule(_READERS, scope="models"),
}
