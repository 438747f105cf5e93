"use strict";
for (const veil of document.querySelectorAll(".veil")) {
  veil.addEventListener("click", () => {
    veil.setAttribute("aria-pressed", String(veil.getAttribute("aria-pressed") !== "true"));
  });
}
