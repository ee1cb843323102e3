// Security keys: a button asks the server for options, the browser for an answer, and sends the answer as a form.
"use strict";
(() => {
  async function ask(button) {
    const form = button.closest("form");
    const said = form.querySelector("[data-key-said]");
    try {
      const token = form.querySelector("[name=csrf]").value;
      const answer = await fetch(button.dataset.keyOptions, {method: "POST", headers: {"x-csrf-token": token}});
      if (!answer.ok) throw new Error(await answer.text());
      const options = await answer.json();
      const made = button.dataset.keyKind === "create"
        ? await navigator.credentials.create({publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options)})
        : await navigator.credentials.get({publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options)});
      form.querySelector("[name=credential]").value = JSON.stringify(made.toJSON());
      form.submit();
    } catch (error) {
      said.textContent = error.message;
      said.hidden = false;
    }
  }
  document.addEventListener("click", event => {
    const button = event.target.closest("[data-key-options]");
    if (button) { event.preventDefault(); ask(button); }
  });
})();
