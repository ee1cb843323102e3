"""Each attack test is seen to fail: what it guards is taken out of a copy of the code, and the test has to notice.

A guard is named by its text, which stands once in the packages, so that moving a module changes nothing here.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("common", "client", "server", "simulations")


@dataclass(frozen=True)
class Guard:
    """text: what holds. without: what stands there instead. test: which has to fail then."""

    text: str
    without: str
    test: str


SUBMISSIONS = "tests/attacks/test_attack_submissions.py"
DIFFERENCES = "tests/attacks/test_attack_differences.py"
ROUNDS = "tests/attacks/test_attack_rounds.py"
INQUIRIES = "tests/attacks/test_attack_inquiries.py"
ALERTS = "tests/attacks/test_attack_alerts.py"
KNOWLEDGE = "tests/attacks/test_attack_console_knowledge.py"
GUARDS = {
    "an inquiry is signed by who asks": Guard(
        "    verify(bytes.fromhex(member.identity_key), domain, canonical.encode(body), signature)\n",
        "",
        INQUIRIES,
    ),
    "an inquiry is for one node": Guard(
        "    if inquiry.node != node:\n",
        "    if False:\n",
        f"{INQUIRIES}::test_a_node_cannot_pass_a_question_on",
    ),
    "an inquiry is answered once": Guard(
        "        if (inquiry.asker, inquiry.id) in self._seen:\n",
        "        if False:\n",
        f"{INQUIRIES}::test_a_replayed_inquiry_is_refused_also_after_a_restart",
    ),
    "an inquiry ends": Guard(
        "    if now > inquiry.expires_at + MAX_CLOCK_SKEW_S:\n",
        "    if False:\n",
        f"{INQUIRIES}::test_an_expired_inquiry_and_one_that_never_expires",
    ),
    "an hour holds so many inquiries": Guard(
        "        if len(asked) >= per_hour:\n",
        "        if False:\n",
        f"{INQUIRIES}::test_beyond_the_hour_and_beyond_the_day",
    ),
    "a day holds so many quotations": Guard(
        "        if wanted > self._journal.quotes_left(rules.quotes_per_day):\n",
        "        if False:\n",
        f"{INQUIRIES}::test_beyond_the_hour_and_beyond_the_day",
    ),
    "the policy is asked about purpose, asker and number": Guard(
        "        rules.check(asker=inquiry.asker, purpose=inquiry.purpose, quotes=inquiry.quotes)\n",
        "        pass\n",
        INQUIRIES,
    ),
    "quotations are verified before they are signed": Guard(
        "                verify_citation(citation, self._caller, self._library.root)\n",
        "                pass\n",
        f"{INQUIRIES}::test_a_quotation_that_does_not_stand_in_its_document",
    ),
    "quotations are redacted": Guard(
        '            personal = _personal(quote, collection) if rules.personal_data != "keep" else []\n',
        "            personal = []\n",
        f"{INQUIRIES}::test_personal_data_is_redacted_where_the_collection_kept_it",
    ),
    "half an address is redacted": Guard(
        "_BEYOND_CHARS = 300\n",
        "_BEYOND_CHARS = 0\n",
        f"{INQUIRIES}::test_half_an_address_is_redacted_too",
    ),
    "an answer is of who was asked": Guard(
        "    if answer.node != inquiry.node:\n",
        "    if False:\n",
        f"{INQUIRIES}::test_another_organizations_answer",
    ),
    "an answer is to this inquiry": Guard(
        "    if answer.inquiry != digest(signed_inquiry) or ",
        "    if False and ",
        f"{INQUIRIES}::test_an_answer_to_another_inquiry",
    ),
    "a quotation is as long as it says": Guard(
        "    for quote in answer.quotes:\n        check_form(quote)\n",
        "",
        f"{INQUIRIES}::test_more_quotations_than_were_asked_for_and_longer_ones",
    ),
    "a model is revealed for one list": Guard(
        "                if known != names:\n                    raise _revealed(model, known, names)\n",
        "                pass\n",
        f"{DIFFERENCES}::test_every_attack_is_refused_by_name",
    ),
    "lists are whole blocks": Guard(
        "            if inside != set(them):\n                raise split(",
        "            if False:\n                raise split(",
        f"{DIFFERENCES}::test_a_list_without_a_member_of_the_only_block",
    ),
    "memory of earlier blocks": Guard(
        "    if small:\n        part = min(small",
        "    if False:\n        part = min(small",
        DIFFERENCES,
    ),
    "named nodes are whole blocks": Guard(
        "        Blocks.of(specification, roster, group).check(names)\n",
        "        Blocks.of(specification, roster, group)\n",
        f"{DIFFERENCES}::test_named_nodes_are_whole_blocks_already_when_a_run_is_submitted",
    ),
    "a submission is one run": Guard(
        "            if known not in (None, name):\n",
        "            if False:\n",
        f"{SUBMISSIONS}::test_a_nonce_is_good_for_one_run_also_under_a_new_signature",
    ),
    "an ended run stays ended": Guard(
        "        if signed.run_id in self._ended:\n",
        "        if False:\n",
        f"{SUBMISSIONS}::test_an_ended_run_never_comes_back_even_when_its_folder_is_gone",
    ),
    "submissions expire": Guard(
        "            signed.check_in_time(now)\n",
        "            pass\n",
        f"{SUBMISSIONS}::test_an_expired_submission_is_refused_by_name",
    ),
    "noise is rounded with the sum, on a lattice": Guard(
        "        mean = total.double() * (lattice.granularity / mechanism.expected_batch)\n",
        "        mean = total.double() * (lattice.granularity / mechanism.expected_batch) + 1e-9\n",
        "tests/unit/test_impossible_outputs.py",
    ),
    "a restored disk is noticed": Guard(
        "        if self.agrees(length, head):\n            return\n",
        "        return\n",
        "tests/attacks/test_attack_rollback.py::test_a_disk_restored_between_two_runs_is_noticed_by_the_first_peer",
    ),
    "a journal restored alone is noticed": Guard(
        "            if found is not None and (len(found) < length or found.head_at(length) != head):\n",
        "            if False:\n",
        "tests/attacks/test_attack_rollback.py::test_a_journal_that_was_restored_alone_is_noticed_without_a_peer",
    ),
    "receipts without a key prove nothing": Guard(
        "        f\"the receipts' signatures cannot be verified: ",
        '        f"something: ',
        "tests/unit/test_privacy_ledger_command.py",
    ),
    "constant weights add up": Guard(
        "    if uniform and sums[0] != contributors * FULL:\n",
        "    if False:\n",
        "tests/attacks/test_attack_weights.py::test_a_weight_that_is_not_the_specified_one_fails_the_attempt",
    ),
    "text for a terminal is cleaned": Guard(
        '    return cut if cut.isprintable() else "".join(char if char.isprintable() else " " for char in cut)\n',
        "    return cut\n",
        "tests/unit/test_text.py",
    ),
    "only hashed files are loaded": Guard(
        "    if not folder.is_dir() or len(kept) == sum(1 for _ in folder.iterdir()):\n        yield folder\n",
        "    if True:\n        yield folder\n",
        "tests/unit/test_models_store.py::test_equal_hashes_load_equal_models",
    ),
    "links stay in a model's folder": Guard(
        "            if path.is_symlink() and not _stays(path):\n",
        "            if False:\n",
        "tests/unit/test_models_store.py::test_links_stay_in_their_folder_or_in_a_hubs_cache",
    ),
    "connections of one address are counted": Guard(
        "            if self._open.total() >= self.most or self._open[source] >= self.of_one_address:\n",
        "            if False:\n",
        "tests/attacks/test_attack_ports.py::test_one_address_does_not_keep_another_out",
    ),
    "an answer ends": Guard(
        "            if size > MAX_RESPONSE_BYTES:\n",
        "            if False:\n",
        "tests/attacks/test_attack_ports.py::test_an_answer_that_goes_on_is_cut",
    ),
    "files of libraries are private": Guard(
        "    os.umask(0o077)\n    resource.setrlimit",
        "    os.umask(0o022)\n    resource.setrlimit",
        "tests/unit/test_secrecy.py",
    ),
    "the fleet's port speaks TLS 1.3 only": Guard(
        "ssl.PROTOCOL_TLS_SERVER)\n    context.minimum_version = ssl.TLSVersion.TLSv1_3\n    _load_chain",
        "ssl.PROTOCOL_TLS_SERVER)\n    context.minimum_version = ssl.TLSVersion.TLSv1_2\n    _load_chain",
        "tests/attacks/test_attack_ports.py::test_the_fleet_port_speaks_no_older_tls",
    ),
    "the control port speaks TLS 1.3 only": Guard(
        "    except IndexError:\n        return False\n    return False\n",
        "    except IndexError:\n        return False\n    return True\n",
        "tests/attacks/test_attack_ports.py::test_the_control_port_speaks_no_older_tls",
    ),
    "an administrator stops a run": Guard(
        '    verify(_administrator(roster, administrator, "stops"), STOP_DOMAIN, run_id.encode(), signature)\n',
        '    _administrator(roster, administrator, "stops")\n',
        f"{SUBMISSIONS}::test_a_run_ends_only_by_who_may_say_it",
    ),
    "a budget has a largest epsilon": Guard(
        "Field(gt=0, le=LARGEST_EPSILON, allow_inf_nan=False)",
        "Field(gt=0, allow_inf_nan=False)",
        "tests/unit/test_client_policy.py",
    ),
    "later fields change no stored document": Guard(
        "            if getattr(self, name) == default:\n                document.pop(name, None)\n",
        "            if False:\n                document.pop(name, None)\n",
        "tests/unit/test_stored_documents.py",
    ),
    "an exception in one run leaves the others": Guard(
        "            except Exception as error:\n                failures += 1\n                pause_s, named",
        "            except ZeroDivisionError as error:\n                failures += 1\n                pause_s, named",
        "tests/integration/test_fleet_run.py"
        "::test_what_goes_wrong_with_one_run_or_with_the_driver_leaves_the_others_to_be_driven",
    ),
    "the chain's bound holds before a round is committed": Guard(
        "            self._link.check_step(model.data, data, plan.round, 1)\n",
        "            pass\n",
        "tests/integration/test_fleet_run.py::test_a_model_that_the_nodes_would_refuse_is_not_committed",
    ),
    "templates have limits": Guard(
        "    if not isinstance(text, str) or len(text) > MAX_TEXT_CHARS:\n",
        "    if not isinstance(text, str):\n",
        "tests/unit/test_chat_template.py::test_a_long_text_is_refused",
    ),
    "nothing is judged twice": Guard(
        "        known = [name for name in names if (group, name) in self._judged]\n",
        "        known: list[str] = []\n",
        "tests/attacks/test_attack_feedback.py::test_a_replayed_rollout_is_refused_in_a_new_run",
    ),
    "so many answers a day": Guard(
        "        if today + len(names) > most:\n",
        "        if False:\n",
        "tests/attacks/test_attack_feedback.py::test_more_than_a_day_allows_is_refused",
    ),
    "a policy allows feedback in so many words": Guard(
        "        if allowed is None or asked.purpose not in allowed.purposes:\n",
        "        if False:\n",
        "tests/attacks/test_attack_feedback.py::test_a_policy_without_the_section_or_the_purpose_answers_nothing",
    ),
    "a judge is of the base that is asked about": Guard(
        "    if document.base_sha256 != specification.model.sha256:\n",
        "    if False:\n",
        "tests/attacks/test_attack_feedback.py::test_a_swapped_base_is_refused",
    ),
    "feedback is no training": Guard(
        "    if step != work_step(specification):\n",
        "    if False:\n",
        "tests/attacks/test_attack_feedback.py::test_feedback_is_no_training_and_training_no_feedback",
    ),
    "opinions that nobody can have are not used": Guard(
        "    if not worst <= allowed:\n",
        "    if False:\n",
        "tests/attacks/test_attack_feedback.py"
        "::test_a_node_that_answers_outside_the_range_is_clipped_or_its_sum_is_not_used",
    ),
    "an upload is proved to be in the sum": Guard(
        "    if found != record.uploads_root:\n",
        "    if False:\n",
        f"{ROUNDS}::test_a_lie_is_refused_by_name",
    ),
    "two heads convict": Guard(
        "        if found is not None:\n            raise found\n    records = [parse_record",
        "        if False:\n            raise found\n    records = [parse_record",
        f"{ROUNDS}::test_a_log_that_was_written_anew_convicts_the_coordinator",
    ),
    "a round's step is followed": Guard(
        "    if not share <= 1.0:\n",
        "    if False:\n",
        f"{ROUNDS}::test_a_lie_from_the_beginning_is_refused_where_no_head_was_kept",
    ),
    "releases pass the gate": Guard(
        "            self._gate.check(session, row)\n",
        "            pass\n",
        "tests/attacks/test_attack_release_gate.py"
        "::test_a_new_consortium_asks_for_evidence_of_aligned_models_and_of_no_others",
    ),
    "evidence is of the model that is released": Guard(
        '    _check_bound(validated(Released, dict(evidence.lineage["released"]), "lineage.released"), bound)\n',
        "",
        "tests/attacks/test_attack_release_gate.py::test_evidence_that_is_signed_and_does_not_count",
    ),
    "the coordinator decides on the figures itself": Guard(
        "    if not (verdict.passed and evidence.passed):\n",
        "    if not evidence.passed:\n",
        "tests/attacks/test_attack_release_gate.py::test_evidence_that_is_signed_and_does_not_count",
    ),
    "evidence counts for one release": Guard(
        "        if known is not None and (known.name, known.number) != (row.name, row.number):\n",
        "        if False:\n",
        "tests/attacks/test_attack_release_gate.py::test_old_evidence_is_not_good_again",
    ),
    "two administrators override": Guard(
        "OVERRIDES_NEEDED = 2\n",
        "OVERRIDES_NEEDED = 1\n",
        "tests/attacks/test_attack_release_gate.py"
        "::test_an_administrator_alone_overrides_nothing_and_two_are_remembered",
    ),
    "aligned through its ancestors": Guard(
        "        parent = session.get(Run, run.parent_run_id) if run.parent_run_id else None\n",
        "        parent = None\n",
        "tests/attacks/test_attack_release_gate.py::test_a_run_that_goes_on_from_an_aligned_one_is_aligned",
    ),
    "a collection is its organization's": Guard(
        "    if not (own and named):\n",
        "    if False:\n",
        "tests/attacks/test_attack_rag.py",
    ),
    "an account's organization is asked for": Guard(
        "person.organization if person.role is Role.ORGANIZATION else settings",
        '"builders" if person.organization else settings',
        f"{KNOWLEDGE}::test_another_organizations_collection_is_refused_as_one_that_is_not_there",
    ),
    "a secret of alerts is its owner's": Guard(
        "        if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:\n",
        "        if False:\n",
        f"{ALERTS}::test_a_secret_that_others_can_read_is_not_used",
    ),
    "an alert has no reasons": Guard(
        "    words = TEXTS(bare if bare in TEXTS.keys else need.text, **said)\n",
        "    words = TEXTS(need.text, **said)\n",
        f"{ALERTS}::test_no_reason_is_in_an_alert_and_every_line_is_one",
    ),
    "an alert's names are one line": Guard(
        "line(value, NAME_CHARS) if isinstance(value, str) else value for name",
        "value for name",
        f"{ALERTS}::test_a_name_cannot_become_a_header_a_command_or_a_second_mail",
    ),
    "a webhook's signature is of a moment": Guard(
        '    made = hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()\n',
        "    made = hmac.new(secret, body, hashlib.sha256).hexdigest()\n",
        f"{ALERTS}::test_a_body_that_was_altered_replayed_or_made_without_the_secret_is_told_apart",
    ),
    "a redirect is a failure": Guard(
        "        if not 200 <= status < 300:\n",
        "        if not 200 <= status < 400:\n",
        f"{ALERTS}::test_a_redirect_is_a_failure_and_leads_nowhere",
    ),
    "mail goes over TLS that is checked": Guard(
        "                server.starttls(context=trusting(settings.authority))\n",
        "                pass\n",
        f"{ALERTS}::test_a_mail_server_without_tls_or_with_anybodys_certificate_gets_nothing",
    ),
    "writers take turns": Guard(
        'connection.info.pop(_BEGIN, "BEGIN IMMEDIATE")',
        'connection.info.pop(_BEGIN, "BEGIN")',
        "tests/integration/test_concurrent_writers.py",
    ),
}


def where(text: str) -> Path:
    """The one file of the packages that holds this text."""
    found = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py") if text in path.read_text("utf-8")]
    assert len(found) == 1, f"{text!r} stands in {[str(path) for path in found]}, not in one file"
    assert found[0].read_text("utf-8").count(text) == 1
    return found[0].relative_to(ROOT)


@pytest.mark.parametrize("guard", list(GUARDS))
def test_every_guard_is_where_it_is_looked_for(guard: str) -> None:
    where(GUARDS[guard].text)
    path, _, name = GUARDS[guard].test.partition("::")
    assert f"def {name}" in (ROOT / path).read_text("utf-8")


@pytest.mark.full
@pytest.mark.parametrize("guard", list(GUARDS))
def test_the_attack_succeeds_without_its_guard(guard: str, tmp_path: Path) -> None:
    found = where(GUARDS[guard].text)
    for folder in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    mutant = tmp_path / found
    mutant.write_text(mutant.read_text("utf-8").replace(GUARDS[guard].text, GUARDS[guard].without), "utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(tmp_path / folder) for folder in PACKAGES)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", GUARDS[guard].test]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 1, f"{GUARDS[guard].test} did not notice:\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
