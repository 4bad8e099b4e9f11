"""The pages that people see in a browser: server-rendered HTML, one style sheet, one small script."""
