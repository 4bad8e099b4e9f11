const plants = ["🌱", "🌿", "🌷", "🌻", "🌳"];
const garden = document.querySelector("#garden");

document.querySelector("#grow").addEventListener("click", () => {
  garden.textContent += plants[Math.floor(Math.random() * plants.length)];
});

// Variables that are set in the Space's settings (never secrets) are in every page.
const name = window.huggingface?.variables?.GARDENER;
if (name) document.querySelector("#greeting").textContent = `Planted by ${name}.`;
